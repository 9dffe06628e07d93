"""What this repository needs around its code: the set-up of the development environment."""
