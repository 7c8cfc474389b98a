"""What the fixture `bsa_case` of `bsa_bench.pytest_plugin` does; nothing here is loaded before a test uses it."""
