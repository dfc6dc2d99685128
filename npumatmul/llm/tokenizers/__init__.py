"""From text to token numbers and back."""
