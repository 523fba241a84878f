"""The learning switch that joins the stacks on one virtual wire."""
