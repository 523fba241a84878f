"""What two layers may share: pipes, records, durable memory, the loop of a layer's process."""
