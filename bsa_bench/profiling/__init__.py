"""Profile one case: where its time and memory go, phase by phase. Apart from all measuring: no time is a result."""
