"""What people see while it runs: logs, progress, telemetry, and text made harmless."""
