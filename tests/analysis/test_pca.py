"""Principal components against scikit-learn's, and the pictures that they make."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from simmim.analysis import feature_pictures, principal_components
from simmim.models.swin import create_encoder
from simmim.utils.errors import UserError


@pytest.mark.parametrize("examples", [200, 5])
def test_components_are_those_of_scikit_learn(examples):
    torch.manual_seed(0)
    features = torch.randn(examples, 8) @ torch.randn(8, 8) + 10
    theirs = PCA(3).fit(features.numpy())
    found = principal_components(features, 3)
    assert np.allclose(found.shares, theirs.explained_variance_ratio_, atol=1e-5)
    # A direction's sign is arbitrary.
    alike = (found.directions * torch.from_numpy(theirs.components_)).sum(dim=1)
    assert np.allclose(alike.abs(), 1, atol=1e-4)
    projected = found.project(features) * alike.sign()
    assert np.allclose(projected, theirs.transform(features.numpy()), atol=1e-3)
    entries = found.directions.gather(1, found.directions.abs().argmax(dim=1, keepdim=True))
    assert (entries > 0).all()


@pytest.mark.parametrize("count", [0, 9])
def test_a_wrong_number_of_components_is_named(count):
    with pytest.raises(UserError, match=f"{count} principal components of 20 examples"):
        principal_components(torch.randn(20, 8), count)


def test_pictures_share_their_colours_across_images():
    torch.manual_seed(0)
    encoder = create_encoder(
        "swin_t", image_size=32, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(1, 2)
    )
    image = torch.randn(1, 3, 32, 32)
    stages = feature_pictures(encoder, torch.cat((image, image, torch.randn(1, 3, 32, 32))))
    assert [tuple(stage.colours.shape) for stage in stages] == [(3, 8, 8, 3), (3, 4, 4, 3)]
    for stage in stages:
        assert stage.colours.min() == 0
        assert stage.colours.max() == 1
        assert torch.allclose(stage.colours[0], stage.colours[1], atol=1e-4)
        assert not torch.allclose(stage.colours[0], stage.colours[2], atol=1e-1)
        assert 0 < float(stage.shares.sum()) <= 1
