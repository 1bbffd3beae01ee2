"""What zephyr-tiny, the bundled model, is made of: its world, text, dialogues, answerers, judge and exam."""
