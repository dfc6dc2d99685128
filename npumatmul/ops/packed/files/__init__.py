"""Files of packed weights: tensors and their description, read, checked and written."""
