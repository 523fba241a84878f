"""What protocols look like in octets, one a file: pure, no state."""
