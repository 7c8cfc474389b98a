"""The built-in suites: data only, read through `importlib.resources`."""
