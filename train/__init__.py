"""Training: from generated dialogues to an aligned model. The only room that imports torch."""
