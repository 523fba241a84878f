"""What joins the layers: pipes, records, durable memory, and the event loop of a layer's process."""
