"""A round: its configuration, its clients, its server."""
