"""The parts of a fine-tuning run; `train_accelerate.py` puts them together."""
