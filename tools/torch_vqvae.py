"""The VQ-VAE of models/vqvae.h in PyTorch, written against the paper (1711.00937) and not against our code.

Shared by make_goldens.py (correctness), bench_peers.py (speed) and quality_vs_torch.py (reconstruction). Parameters
have the names that models/ gives them, so that both sides can be filled from one formula. Images are (N,C,H,W) here.
"""
import torch
from torch import nn
import torch.nn.functional as F

PRESETS = {
    "fashion": dict(height=28, width=28, channels=1, hidden=128, residual=32, code_dim=64, codes=512, batch=128),
    "large": dict(height=32, width=32, channels=3, hidden=256, residual=64, code_dim=256, codes=1024, batch=64),
}


def straight_through(z, q):
    return z + (q - z).detach()


def _directions(z, q, eps=1e-6):
    z_norm = z.norm(dim=-1, keepdim=True).clamp(min=eps)
    q_norm = q.norm(dim=-1, keepdim=True).clamp(min=eps)
    u, v = z / z_norm, q / q_norm
    return u, v, F.normalize(u + v, dim=-1, eps=eps), q_norm / z_norm


def rotation_dots(z, q):
    """The rotation trick (2410.06424) by row dot products: what a careful user writes."""
    with torch.no_grad():
        u, v, w, scale = _directions(z, q)
    return scale * (z - 2 * (z * w).sum(-1, keepdim=True) * w + 2 * (z * u).sum(-1, keepdim=True) * v)


def rotation_products(z, q):
    """The same by the outer products of the authors' code."""
    with torch.no_grad():
        u, v, w, scale = _directions(z, q)
    row = z.unsqueeze(1)
    out = row - 2 * (row @ w.unsqueeze(2) @ w.unsqueeze(1)) + 2 * (row @ u.unsqueeze(2) @ v.unsqueeze(1))
    return out.squeeze(1) * scale


ESTIMATORS = {"ste": straight_through, "rotation": rotation_dots, "rotation-products": rotation_products}


def nearest_expanded(z, codes):
    """Row index of the nearest code, by |z|^2 - 2 z.e + |e|^2: the usual form."""
    return (z.pow(2).sum(1, keepdim=True) - 2 * (z @ codes.t()) + codes.pow(2).sum(1)).argmin(1)


class ResidualBlock(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Encoder(nn.Module):
    def __init__(self, channels, hidden, residual, code_dim):
        super().__init__()
        self.down1 = nn.Conv2d(channels, hidden // 2, 4, 2, 1)
        self.down2 = nn.Conv2d(hidden // 2, hidden, 4, 2, 1)
        self.conv = nn.Conv2d(hidden, hidden, 3, 1, 1)
        self.out = nn.Conv2d(hidden, code_dim, 1)
        self.res1 = ResidualBlock(hidden, residual)
        self.res2 = ResidualBlock(hidden, residual)

    def forward(self, x):
        h = self.conv(F.relu(self.down2(F.relu(self.down1(x)))))
        return self.out(F.relu(self.res2(self.res1(h))))


class Decoder(nn.Module):
    def __init__(self, channels, hidden, residual, code_dim):
        super().__init__()
        self.conv = nn.Conv2d(code_dim, hidden, 3, 1, 1)
        self.up1 = nn.ConvTranspose2d(hidden, hidden // 2, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(hidden // 2, channels, 4, 2, 1)
        self.res1 = ResidualBlock(hidden, residual)
        self.res2 = ResidualBlock(hidden, residual)

    def forward(self, z):
        h = F.relu(self.res2(self.res1(self.conv(z))))
        return self.up2(F.relu(self.up1(h)))


class Codebook(nn.Module):
    def __init__(self, codes, dim):
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(codes, dim).uniform_(-1.0 / codes, 1.0 / codes))


class VqVae(nn.Module):
    """forward(images) -> (reconstructions, codebook loss, commitment loss), means over all elements, unweighted."""

    def __init__(self, channels, hidden, residual, code_dim, codes, estimator=straight_through,
                 nearest=nearest_expanded, **_):
        super().__init__()
        self.encoder = Encoder(channels, hidden, residual, code_dim)
        self.quantizer = Codebook(codes, code_dim)
        self.decoder = Decoder(channels, hidden, residual, code_dim)
        self.estimator, self.nearest = estimator, nearest
        self.dense = False   # whether the decoder's input is copied to (N,C,H,W) order

    def rows(self, images):
        """Encoder outputs as rows (N h w, D), and their (N, h, w, D)."""
        z = self.encoder(images).permute(0, 2, 3, 1)
        return z.reshape(-1, z.shape[-1]), z.shape

    def forward(self, images):
        z, shape = self.rows(images)
        codes = self.quantizer.codebook
        with torch.no_grad():
            indices = self.nearest(z, codes)
        q = F.embedding(indices, codes)
        codebook_loss = F.mse_loss(q, z.detach())
        commitment_loss = F.mse_loss(z, q.detach())
        latents = self.estimator(z, q.detach()).reshape(shape).permute(0, 3, 1, 2)
        if self.dense:
            latents = latents.contiguous()
        return self.decoder(latents), codebook_loss, commitment_loss


def losses(model, images, beta=1.0, gamma=0.25):
    """(total, reconstruction, codebook, commitment) of the model on one batch."""
    out, codebook, commitment = model(images)
    reconstruction = F.mse_loss(out, images)
    return reconstruction + beta * codebook + gamma * commitment, reconstruction, codebook, commitment
