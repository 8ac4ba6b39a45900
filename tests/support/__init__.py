"""What tests share: toy models and data, ranks, hosts, scripts that tests start."""
