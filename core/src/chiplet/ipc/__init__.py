"""Messages and sockets between processes."""
