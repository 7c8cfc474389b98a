"""Methods: what each attends to, as plans for the engines; a folder each, and none knows another."""
