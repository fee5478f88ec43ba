"""One fine-tuning run: data, epochs, updates, the state to go on from."""
