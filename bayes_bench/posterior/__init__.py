"""What a method is: a distribution over one network's weights, and the loop, likelihood and prior it is given."""
