"""What an author writes, and the compiler from that to the plan."""
