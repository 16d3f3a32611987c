"""The contract checks, public, so that a third party can run them over its own methods and tasks."""
