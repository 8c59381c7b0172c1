"""From a PRD to a workspace of agents that runs."""
