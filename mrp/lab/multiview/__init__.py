"""Which features pretraining and supervised learning capture in the data model of Pan, Zhou and Yan (ICLR 2023)."""
