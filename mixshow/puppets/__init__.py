"""The built-in base: a procedural world of puppets, networks trained on it, and a judge of what they draw."""
