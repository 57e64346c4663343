"""HTTP over the runtime (arrives with the serving capability)."""
