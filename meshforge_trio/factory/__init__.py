"""From a PRD, a Markdown document of a product person, to a workspace of agents."""
