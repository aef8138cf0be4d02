"""The backbones: one `ModelSpec` each, looked up by name with `registry.get`."""
