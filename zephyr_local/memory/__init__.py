"""What a model needs, what fits, and how fast: from a header alone, without native code."""
