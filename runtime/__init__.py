"""Artifact to answers: tokenizer, planner, sessions, task API."""
