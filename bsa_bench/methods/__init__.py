"""What is attended: a method turns an engine and options into an operator of named stages."""
