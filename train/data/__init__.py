"""Training data: read in the formats that people publish, checked, cleaned, reported. No torch here."""
