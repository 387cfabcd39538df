"""Accuracy on labelled images, in one go or resumed."""
