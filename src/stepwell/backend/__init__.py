"""Where facts rest: the contract, the reference in memory, and SQLite."""
