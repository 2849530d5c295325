"""Defenses and rules inside other frameworks. Each needs its framework installed."""
