"""What class-activation maps cover: the pictures of Pan, Zhou and Yan (ICLR 2023) as numbers."""
