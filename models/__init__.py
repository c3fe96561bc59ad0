"""Retrieval models beside ours, all behind one interface: for evaluation, SCA, fusion and fine-tuning."""
