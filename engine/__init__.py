"""Features and match logits in batches, as fast as the machine allows."""
