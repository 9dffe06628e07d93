"""Samples shared out anew among ranks that come and go: its name."""

from hvd_sign.standalone.absent import absent_in_elastic

ElasticSampler = absent_in_elastic("ElasticSampler")
