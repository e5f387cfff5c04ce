"""Classification and localization: one object an image, its class and its box."""
