"""The Trainer whose epochs are rounds."""
