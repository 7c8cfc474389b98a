"""What is attended: a method's options, claims, operator and definition. None loads torch when it is imported."""
