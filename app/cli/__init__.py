"""What can be typed: commands, arguments and help. Nothing here imports torch."""
