"""HTTP over the runtime: a queue and model threads for each model, and the routes that clients speak."""
