"""Speech: from samples to features, and from what a model writes about windows of them to a text with times."""
