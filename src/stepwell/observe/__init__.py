"""What can be seen from outside while workflows run: traces, metrics and log lines. Nothing here changes what runs."""
