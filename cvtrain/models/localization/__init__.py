"""Classification and localization: one object per image, its class and its box."""
