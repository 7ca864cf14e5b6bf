"""Corruptions of images: noise, blur, weather, digital faults and colour, as in the re-identification benchmark."""
