"""What all else builds on: values that travel, errors, random streams, vectors, distances."""
