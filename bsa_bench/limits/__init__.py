"""What a GPU really delivers of the resources that ceilings are made of: measured, in place of published figures."""
