"""AlexNet (Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014).

Maps (N, 3, 224, 224) to logits (N, classes). It is torchvision's: the same architecture,
initialisation and state_dict, so its pretrained weights fit.
"""

import torch
from torch import Tensor, nn

from cnnkernels.models.spec import ModelSpec


class AlexNet(nn.Module):
    """Five convolutions, pooling to 6x6 and three linear layers."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each image."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


MODELS = {"alexnet": ModelSpec(AlexNet, (3, 224, 224), 1000)}
