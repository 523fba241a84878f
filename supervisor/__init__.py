"""The keeper, the supervisor process of a stack, and the client of its control socket."""
